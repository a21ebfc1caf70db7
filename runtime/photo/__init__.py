"""What a photo's file tells and how it is shown, as far as Pillow leaves that to `runtime.preprocess`."""
