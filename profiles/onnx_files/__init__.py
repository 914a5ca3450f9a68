"""Models of other software as ONNX files: what they are made of, for inference."""
