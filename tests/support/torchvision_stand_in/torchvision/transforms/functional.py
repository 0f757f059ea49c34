"""Names that transformers imports."""

pil_to_tensor = None
