"""How the embedded models are trained, scored and released."""
