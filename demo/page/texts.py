"""Every word of the page, in English and Bahasa Indonesia.

What a component shows of itself (label, placeholder, name of a tab) is `label("key")`, which the browser fills in; what
Python renders is `say(language_of(request), "key", …)`. Both go by the visitor's first language.
"""

import json

import gradio as gr

from demo.service.problem import Problem

LANGUAGES = ("en", "id")

# What saji recorded when it chose (reasons, names of candidates) is shown as it was written: in English
_TEXTS: dict[str, tuple[str, str]] = {
    "title": ("Which dish is this?", "Hidangan apa ini?"),
    "knows": ("saji knows {count} dishes{named}.", "saji mengenal {count} hidangan{named}."),
    "served_by": ("served by", "dilayani oleh"),
    "parity": ("parity: {verdict}", "paritas: {verdict}"),
    "accuracy": ("accuracy {value:.2f}", "akurasi {value:.2f}"),
    "drawn": (
        "This model was trained on <b>drawn pictures, not photos</b>: it knows drawings like the examples, and its "
        "answers on real photos mean nothing.",
        "Model ini dilatih dengan <b>gambar buatan, bukan foto</b>: ia mengenal gambar seperti pada contoh, dan "
        "jawabannya untuk foto sungguhan tidak berarti apa-apa.",
    ),
    # Classify
    "classify": ("Classify", "Kenali"),
    "photo": ("Photo", "Foto"),
    "drop": ("Drop a photo here\nor click to choose one", "Letakkan foto di sini\natau klik untuk memilih"),
    "dish": ("Dish", "Hidangan"),
    "hint": (
        "Upload, take or paste a photo, or click an example.",
        "Unggah, ambil, atau tempel foto, atau klik sebuah contoh.",
    ),
    "examples": ("Examples", "Contoh"),
    "example": ("Example", "Contoh"),
    "not_sure": (
        "Not sure: this may be none of the {count} dishes.",
        "Tidak yakin: mungkin ini bukan salah satu dari {count} hidangan.",
    ),
    "look": ("What did it look at?", "Apa yang dilihatnya?"),
    "heat": (
        "Bright is what speaks for {dish}, dark what does not. The network sees nothing outside the square. "
        "This map is of the FP32 model.",
        "Terang berarti mendukung {dish}, gelap berarti tidak. Jaringan tidak melihat apa pun di luar persegi. "
        "Peta ini dari model FP32.",
    ),
    "heat_alt": (
        "the photo under a heat map of what speaks for {dish}",
        "foto di bawah peta panas tentang apa yang mendukung {dish}",
    ),
    "decode": ("decode", "dekode"),
    "geometry": ("geometry", "geometri"),
    "inference": ("inference", "inferensi"),
    "why": ("Why this one?", "Mengapa yang ini?"),
    "no_reason": ("no reason is recorded", "tidak ada alasan yang tercatat"),
    "passed_over": ("Passed over, {reason}.", "Dilewati, {reason}."),
    "measured_on": ("Measured on {machine}.", "Diukur pada {machine}."),
    "cores": ("{count} cores", "{count} inti"),
    "no_gpu": ("no GPU", "tanpa GPU"),
    "not_chosen": ("Not chosen", "Tidak dipilih"),
    "because": ("Because", "Karena"),
    # Compare
    "compare": ("Compare", "Bandingkan"),
    "compare_note": (
        "One photo through every candidate that passed on this machine, each in a process of its own. The time is the "
        "median of an inference after a warm-up, measured beside whatever else this machine does now; the difference "
        "is the largest of a probability from PyTorch in FP32.",
        "Satu foto melalui setiap kandidat yang lulus di mesin ini, masing-masing dalam prosesnya sendiri. Waktunya "
        "adalah median satu inferensi setelah pemanasan, diukur di samping pekerjaan lain mesin ini; selisihnya adalah "
        "selisih probabilitas terbesar dari PyTorch dalam FP32.",
    ),
    "compare_start": ("Compare all candidates", "Bandingkan semua kandidat"),
    "compare_progress": ("{done} of {count} candidates", "{done} dari {count} kandidat"),
    "compare_agree": (
        "All {count} answer {label}, as the page does.",
        "Semua {count} menjawab {label}, seperti halaman ini.",
    ),
    "compare_differ": (
        "{differing} of {count} answer otherwise than the page, which says {label}.",
        "{differing} dari {count} menjawab lain daripada halaman ini, yang menjawab {label}.",
    ),
    "compare_failed": ("{count} gave no answer.", "{count} tidak memberi jawaban."),
    "no_photo": ("Choose a photo first.", "Pilih foto dahulu."),
    "waiting": ("{count} before you; yours begins by itself.", "{count} sebelum Anda; giliran Anda mulai sendiri."),
    "candidate": ("Candidate", "Kandidat"),
    "answer": ("Answer", "Jawaban"),
    "probability": ("Probability", "Probabilitas"),
    "inference_time": ("Inference", "Inferensi"),
    "difference": ("Difference", "Selisih"),
    "reference": ("reference", "acuan"),
    # Batch
    "batch": ("Batch", "Banyak foto"),
    "batch_note": (
        "Many photos at once, loose or in a zip. They are read in memory, and forgotten.",
        "Banyak foto sekaligus, lepas atau dalam zip. Foto dibaca di memori, lalu dilupakan.",
    ),
    "files": ("Photos or a zip", "Foto atau zip"),
    "batch_start": ("Name all dishes", "Kenali semua hidangan"),
    "batch_progress": ("{done} of {count} photos", "{done} dari {count} foto"),
    "batch_done": ("{count} photos:", "{count} foto:"),
    "file": ("File", "Berkas"),
    "sure": ("Sure", "Yakin"),
    "yes": ("yes", "ya"),
    "no": ("no", "tidak"),
    "unsure": ("not sure", "tidak yakin"),
    "unreadable": ("not read", "tidak terbaca"),
    "unsure_ones": ("Not sure of these", "Tidak yakin tentang ini"),
    "perhaps": ("perhaps {label}, {probability:.1%}", "mungkin {label}, {probability:.1%}"),
    "download": ("Download {form}", "Unduh {form}"),
    # Benchmark
    "benchmark": ("Benchmark", "Tolok ukur"),
    "race": ("Race", "Uji"),
    "race_info": (
        "One race on one machine at a time: times of different machines are not compared.",
        "Satu uji pada satu mesin: waktu dari mesin yang berbeda tidak dibandingkan.",
    ),
    "no_races": (
        "No race is recorded here yet; run one with: make bench",
        "Belum ada uji yang tercatat di sini; jalankan dengan: make bench",
    ),
    "pareto": ("Accuracy against latency", "Akurasi terhadap latensi"),
    "accuracy_column": ("Accuracy", "Akurasi"),
    "interval": ("95 % interval", "Interval 95 %"),
    "median": ("Median ms", "Median ms"),
    "verdict": ("Parity", "Paritas"),
    "frontier": ("Pareto front", "Batas Pareto"),
    "machine": ("Machine", "Mesin"),
    "on_front": ("on it", "di batas"),
    "behind": ("behind it", "di belakangnya"),
    "not_served": ("Not served here, and why", "Tidak dilayani di sini, dan alasannya"),
    # About
    "about": ("About", "Tentang"),
    "model": ("Model", "Model"),
    "name": ("Name", "Nama"),
    "architecture": ("Network", "Jaringan"),
    "pixels": ("Pixels it sees", "Piksel yang dilihat"),
    "serves": ("Serves as", "Dilayani sebagai"),
    "computed_in": ("Computed in", "Dihitung dalam"),
    "data": ("Data", "Data"),
    "kind": ("Kind", "Jenis"),
    "drawings": ("drawn pictures, no photos", "gambar buatan, bukan foto"),
    "photos": ("photos", "foto"),
    "classes": ("Dishes", "Hidangan"),
    "trained_on": ("Pictures trained on", "Gambar untuk latihan"),
    "judged_on": ("Pictures judged on", "Gambar untuk penilaian"),
    "fingerprint": ("Fingerprint", "Sidik jari"),
    "recipe": ("Training recipe", "Resep pelatihan"),
    "checkpoint": ("trained network (FP32)", "jaringan terlatih (FP32)"),
    "of": ("Of", "Dari"),
    "wilson": ("95 % interval (Wilson)", "Interval 95 % (Wilson)"),
    "confusions": ("Confusion matrix", "Matriks konfusi"),
    "confusions_told": (
        "What the trained network (FP32) said of the {photos} pictures it is judged on, none of which it was trained "
        "on.",
        "Jawaban jaringan terlatih (FP32) untuk {photos} gambar penilaian, yang tidak satu pun dipakai untuk latihan.",
    ),
    "true_said": ("is ↓ said →", "sebenarnya ↓ jawaban →"),
    "true": ("Is", "Sebenarnya"),
    "said": ("Said", "Jawaban"),
    "count": ("Pictures", "Gambar"),
    "calibration": ("Calibration", "Kalibrasi"),
    "temperature": (
        "Probabilities are softmax(logits / {value:.3g}), this temperature being fitted to the pictures it is judged "
        "on.",
        "Peluang adalah softmax(logit / {value:.3g}); suhu ini disesuaikan dengan gambar penilaian.",
    ),
    "ece": (
        "Expected calibration error {after:.3f} with it (cross-fitted), {before:.3f} without.",
        "Galat kalibrasi (ECE) {after:.3f} dengan suhu itu (validasi silang), {before:.3f} tanpa.",
    ),
    "rejection": ("When it is not sure", "Kapan ia tidak yakin"),
    "rejection_told": (
        "“Not sure” is said when the score ({rule}) is below {threshold:.3g}. It is no proof: other dishes can look "
        "sure, too.",
        "“Tidak yakin” dinyatakan bila skor ({rule}) di bawah {threshold:.3g}. Ini bukan bukti: hidangan lain pun "
        "dapat tampak meyakinkan.",
    ),
    "no_rejection": (
        "It has no rejection rule and always names one of its dishes.",
        "Ia tidak memiliki aturan penolakan dan selalu menyebut salah satu hidangannya.",
    ),
    "limits": ("Limits", "Batasan"),
    "limit_drawn": (
        "Trained on drawn pictures: it says nothing about real photos.",
        "Dilatih dengan gambar buatan: jawabannya tidak berlaku untuk foto sungguhan.",
    ),
    "limit_dishes": (
        "It knows {count} dishes; of any other it can at best say that it is not sure.",
        "Ia mengenal {count} hidangan; untuk yang lain ia paling-paling dapat berkata tidak yakin.",
    ),
    "limit_photos": (
        "The accuracy holds for pictures like those it was trained on; other cameras, light or plates can lower it.",
        "Akurasi berlaku untuk gambar seperti pada latihan; kamera, cahaya, atau piring lain dapat menurunkannya.",
    ),
    "limit_health": (
        "It sees no ingredients: do not use it to decide about allergies, diets or anything medical.",
        "Ia tidak melihat bahan: jangan dipakai untuk memutuskan soal alergi, diet, atau hal medis.",
    ),
}
# A refusal says in English what it is about; here by its cause
_REFUSALS_ID = {
    "not-a-picture": "Berkas ini bukan gambar yang dapat dibaca; kirim foto JPEG, PNG, atau WEBP",
    "too-many-pixels": "Foto ini terlalu besar; kirim foto dengan piksel lebih sedikit",
    "not-uploaded": "Foto ini tidak diunggah di sini dalam satu jam terakhir; unggah lagi",
    "no-heat-map": "Model ini tidak dapat menunjukkan apa yang dilihatnya",
    "queue-full": "Semua tempat dalam antrean terisi; coba lagi sebentar lagi",
    "too-large": "Berkas ini terlalu besar; kirim foto yang lebih kecil",
    "too-many-photos": "Terlalu banyak foto; kirim sisanya dalam kiriman lain",
    "busy": "Terlalu banyak yang menunggu; coba lagi satu menit lagi",
    "broken-zip": "Ini bukan zip yang dapat dibaca; buat zip-nya lagi",
    "zip-too-large": "Isi zip ini terlalu banyak; kirim lebih sedikit foto sekaligus",
    "broken-entry": "Berkas ini rusak di dalam zip; buat zip-nya lagi",
    "outside-zip": "Nama berkas ini menunjuk ke luar zip; buat zip dari foldernya",
    "zip-in-zip": "Zip di dalam zip tidak dibuka; kirim secara terpisah",
    "encrypted": "Berkas ini terenkripsi; buat zip-nya lagi tanpa kata sandi",
    "compression": "Berkas ini dimampatkan dengan cara yang tidak biasa; buat zip-nya lagi dengan Deflate",
    "too-slow": "Belum ada jawaban karena antrean terlalu panjang; coba lagi sebentar lagi",
}

label = gr.I18n(
    **{language: {key: texts[number] for key, texts in _TEXTS.items()} for number, language in enumerate(LANGUAGES)}
)


def language_of(request: gr.Request | None) -> str:
    """The visitor's first language, as Gradio's own words go by in the browser; English where we do not speak it."""
    first = (request.headers.get("accept-language") or "") if request else ""
    spoken = first.partition(",")[0].partition(";")[0].partition("-")[0].strip().lower()
    return spoken if spoken in LANGUAGES else LANGUAGES[0]


def say(language: str, key: str, **values: object) -> str:
    """A text with its values filled in; values that others wrote have to be escaped before."""
    return _TEXTS[key][LANGUAGES.index(language)].format(**values)


def script(key: str) -> str:
    """A text in the visitor's language, as an expression of JavaScript."""
    texts = json.dumps({language: say(language, key) for language in LANGUAGES})
    return f"(words => words[document.documentElement.lang] ?? words.en)({texts})"


def refusal(language: str, problem: Problem) -> str:
    """A refused request as a sentence, without HTML."""
    return f"{_REFUSALS_ID.get(problem.cause, problem.detail) if language == 'id' else problem.detail}."
