"""Names that transformers imports."""

ImageReadMode = decode_image = None
