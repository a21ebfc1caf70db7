"""Every word of the page, in English and Bahasa Indonesia.

What a component shows of itself (label, placeholder, name of a tab) is `label("key")`, which the browser fills in; what
Python renders is `say(language_of(request), "key", …)`. Both go by the visitor's first language.
"""

import gradio as gr

from demo.problem import Problem

LANGUAGES = ("en", "id")

# What saji recorded when it chose (reasons, names of candidates) is shown as it was written: in English
_TEXTS: dict[str, tuple[str, str]] = {
    "title": ("Which dish is this?", "Hidangan apa ini?"),
    "knows": ("saji knows {count} dishes{named}.", "saji mengenal {count} hidangan{named}."),
    "served_by": ("served by", "dilayani oleh"),
    "parity": ("parity: {verdict}", "kesetaraan: {verdict}"),
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
    # Benchmark
    "benchmark": ("Benchmark", "Tolok ukur"),
    # About
    "about": ("About", "Tentang"),
}
# A refusal says in English what it is about; here by its cause
_REFUSALS_ID = {
    "not-a-picture": "Berkas ini bukan gambar yang dapat dibaca; kirim foto JPEG, PNG, atau WEBP",
    "too-many-pixels": "Foto ini terlalu besar; kirim foto dengan piksel lebih sedikit",
    "queue-full": "Semua tempat dalam antrean terisi; coba lagi sebentar lagi",
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


def refusal(language: str, problem: Problem) -> str:
    """A refused request as a sentence, without HTML."""
    return f"{_REFUSALS_ID.get(problem.cause, problem.detail) if language == 'id' else problem.detail}."
