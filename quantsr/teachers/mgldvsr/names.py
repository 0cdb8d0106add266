"""What the modules of MGLD-VSR are called: parts, blocks, and the layers that methods treat in another way."""

from torch import nn

from quantsr.teachers.base import Teacher
from quantsr.teachers.mgldvsr.unet import VideoUNet
from quantsr.teachers.mgldvsr.vae import VideoAutoencoder


class NamedModules(Teacher):
    """A teacher made of ``vae``, ``unet`` and ``structure``.

    Attributes:
        vae: the autoencoder.
        unet: the denoiser.
    """

    vae: VideoAutoencoder
    unet: VideoUNet

    @property
    def entrance(self) -> str:
        return "unet.input_blocks.0.0"

    @property
    def exit(self) -> str:
        return "unet.out.2"

    def parts(self) -> dict[str, list[str]]:
        return {
            "encoder": ["vae.encoder", "vae.quant_conv"],
            "denoiser": ["unet"],
            "decoder": ["vae.post_quant_conv", "vae.decoder"],
        }

    def kept(self) -> list[str]:
        """The structure encoder: QuantVSR quantizes the UNet alone."""
        return ["structure"]

    def sensitive(self) -> dict[str, list[str]]:
        return {
            "encoder": ["vae.quant_conv", "vae.encoder.conv_out"],
            "denoiser": ["unet.time_embed.0", "unet.out.2"],
            "decoder": ["vae.post_quant_conv", "vae.decoder.conv_out"],
        }

    def blocks(self) -> dict[str, list[str]]:
        vae = {part: [f"vae.{name}" for name in names] for part, names in self.vae.blocks().items()}
        return {**vae, "denoiser": [f"unet.{name}" for name in self.unet.blocks()]}

    def concatenations(self) -> dict[str, int]:
        found, channels = {}, self.unet.middle_block[0].out_layers[3].out_channels
        for number, stage in enumerate(self.unet.output_blocks):
            for layer in ("in_layers.2", "skip_connection"):
                if isinstance(stage[0].get_submodule(layer), nn.Conv2d):  # A shortcut of as many channels has no layer.
                    found[f"unet.output_blocks.{number}.0.{layer}"] = channels
            channels = stage[0].out_layers[3].out_channels
        return found
