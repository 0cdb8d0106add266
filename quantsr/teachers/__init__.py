"""The models to quantize."""

import logging

# diffusers imports bitsandbytes where that is installed (pyiqa brings it), which warns of kernels that nothing here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
