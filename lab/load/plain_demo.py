"""The demo that the service is compared with: Gradio, torchvision's transforms, the network in eager PyTorch.

`python -m lab.load.plain_demo MODEL_FOLDER`
"""

import sys

import gradio as gr
import torch
from PIL import Image
from torchvision.transforms.v2 import PILToTensor

from lab.claims.workloads import eager


def main() -> None:
    """Serve until the process is ended; the address goes to stdout."""
    model, transform, classes = eager(sys.argv[1])

    def predict(photo: Image.Image) -> dict[str, float]:
        pixels = transform(PILToTensor()(photo.convert("RGB")))
        with torch.inference_mode():
            probabilities = model(pixels.permute(1, 2, 0)[None])[0].softmax(0).tolist()  # it takes uint8 [N, S, S, 3]
        return dict(zip(classes, probabilities, strict=True))

    demo = gr.Interface(predict, gr.Image(type="pil"), gr.Label(num_top_classes=5), api_name="predict")
    _, address, _ = demo.launch(quiet=True, prevent_thread_lock=True)
    print(f"the plain demo is on {address}", flush=True)
    demo.block_thread()


if __name__ == "__main__":
    main()
