"""The models to quantize."""

import logging

# diffusers imports bitsandbytes where that is installed (pyiqa brings it), and that warns of kernels not used here.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
