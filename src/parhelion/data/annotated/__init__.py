"""Images with annotated objects, for detection."""
