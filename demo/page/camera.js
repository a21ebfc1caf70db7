// The camera, wired up once when the page is there. `words` are texts in the visitor's language.
// A photo goes to the page's own uploader. Live frames go to /live, the next one only when the last is answered: what
// the camera sees meanwhile is never sent, so that nothing can queue. (Gradio's own streaming sends by the clock, in
// base64.)
(words) => {
  const EVERY = 250, AFTER_REFUSAL = 1000; // milliseconds from one frame to the next, at least
  const at = (selector) => document.querySelector(selector);
  const view = at("#live"), video = at("#live video"), answer = at("#live output");
  const shot = Object.assign(document.createElement("input"), { type: "file", accept: "image/*" });
  shot.setAttribute("capture", "environment"); // the camera behind, at once; a desktop asks for a file
  const keep = at("#live .keep");
  const REASONS = { NotFoundError: words.no_camera_there, NotReadableError: words.in_use };
  const say = (text) => (answer.textContent = text);
  const pause = (milliseconds) => new Promise((done) => setTimeout(done, Math.max(0, milliseconds)));
  let stream = null;
  view.ariaLabel = words.live;
  keep.disabled = true;
  for (const end of ["keep", "stop"]) at(`#live .${end}`).textContent = words[end];

  const hand = (file) => { // as if it were dropped there, which takes the place of an earlier photo
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(file);
    const drop = Object.assign(new Event("drop", { bubbles: true, cancelable: true }), { dataTransfer });
    at("#photo .upload-container").dispatchEvent(drop);
  };

  const hidden = () => { // a browser that resists fingerprinting gives noise for what was drawn
    const greys = [255, 0, 200, 50, 150, 100, 0, 255];
    const context = Object.assign(document.createElement("canvas"), { width: greys.length, height: 1 }).getContext("2d");
    greys.forEach((grey, x) => {
      context.fillStyle = `rgb(${grey}, ${grey}, ${grey})`;
      context.fillRect(x, 0, 1, 1);
    });
    let seen = []; // some let no page read at all
    try { seen = context.getImageData(0, 0, greys.length, 1).data; } catch { }
    return !greys.every((grey, x) => Math.abs(seen[4 * x] - grey) < 16); // some flip the last bits, which harms nothing
  };

  const frame = () => new Promise((done) => { // as large as the camera gives it: the service alone scales
    const canvas = document.createElement("canvas");
    [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
    canvas.getContext("2d").drawImage(video, 0, 0);
    canvas.toBlob(done, "image/jpeg", 0.9);
  });

  const ask = async () => { // the milliseconds to wait before the next frame
    const started = performance.now();
    if (hidden()) return say(words.hidden), AFTER_REFUSAL;
    const response = await fetch("live", { method: "POST", body: await frame(), headers: { "content-type": "image/jpeg" } });
    const { says } = await response.json();
    if (stream) say(says ?? words.interrupted);
    return response.ok ? EVERY - (performance.now() - started) : AFTER_REFUSAL;
  };

  const stop = () => {
    stream?.getTracks().forEach((track) => track.stop());
    video.srcObject = stream = null;
    keep.disabled = true;
  };

  const start = async () => {
    say(navigator.mediaDevices ? "" : words.needs_https);
    view.showModal();
    if (!navigator.mediaDevices) return;
    try {
      const wanted = { facingMode: "environment", width: { ideal: 1280 }, height: { ideal: 720 } };
      const opened = await navigator.mediaDevices.getUserMedia({ video: wanted, audio: false });
      if (!view.open) return opened.getTracks().forEach((track) => track.stop()); // closed while it was asked
      video.srcObject = stream = opened;
      await video.play();
      keep.disabled = !stream;
    } catch (error) {
      return say(REASONS[error.name] ?? words.no_camera);
    }
    const mine = stream;
    while (stream === mine) await pause(await ask().catch(() => (say(words.interrupted), AFTER_REFUSAL)));
  };

  at("#take").addEventListener("click", () => shot.click());
  shot.addEventListener("change", () => {
    if (shot.files.length) hand(shot.files[0]);
    shot.value = ""; // the same photo once more is a change, too
  });
  at("#live-start").addEventListener("click", start);
  keep.addEventListener("click", async () => {
    if (hidden()) return say(words.hidden);
    if (stream) hand(new File([await frame()], "live.jpg", { type: "image/jpeg" }));
    view.close();
  });
  at("#live .stop").addEventListener("click", () => view.close());
  view.addEventListener("close", stop); // by Escape, too
  document.addEventListener("visibilitychange", () => document.hidden && view.close());
}
