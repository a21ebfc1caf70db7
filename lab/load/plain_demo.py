"""The demo that the service is compared with: Gradio, torchvision's transforms, the network in eager PyTorch.

`python -m lab.load.plain_demo MODEL_FOLDER`
"""

import sys
from pathlib import Path

import gradio as gr
import torch
from PIL import Image
from torchvision.transforms import v2

from runtime.receipt import Receipt


def main() -> None:
    """Serve until the process is ended; the address goes to stdout."""
    folder = Path(sys.argv[1])
    spec = Receipt.read(folder).spec
    model = torch.export.load(folder / "model.pt2").module().to(memory_format=torch.channels_last)
    resize, size = spec.geometry.resize, spec.geometry.size
    transform = v2.Compose([v2.PILToTensor(), v2.Resize(resize, antialias=True), v2.CenterCrop(size)])

    def predict(photo: Image.Image) -> dict[str, float]:
        images = transform(photo.convert("RGB")).permute(1, 2, 0)[None]  # the model takes uint8 [N, size, size, 3]
        with torch.inference_mode():
            probabilities = model(images)[0].softmax(0).tolist()
        return dict(zip(spec.classes, probabilities, strict=True))

    demo = gr.Interface(predict, gr.Image(type="pil"), gr.Label(num_top_classes=5), api_name="predict")
    _, address, _ = demo.launch(quiet=True, prevent_thread_lock=True)
    print(f"the plain demo is on {address}", flush=True)
    demo.block_thread()


if __name__ == "__main__":
    main()
