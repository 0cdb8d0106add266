"""One denoising step of MGLD-VSR at full size, with random weights, on the CPU.

    python benchmarks/full_size.py [--latent 16] [--frames 5] [--threads 2]

Shows what a machine needs to hold the UNet and the structure encoder in bfloat16 and to denoise one segment of a clip.
Memory is the peak of resident memory of the whole process (on Linux), with Python and its libraries.
"""

import argparse
import resource
import time

import torch
from torch import nn

from quantsr.teachers.mgldvsr.checkpoints import FULL_SIZE
from quantsr.teachers.mgldvsr.structure import StructureEncoder
from quantsr.teachers.mgldvsr.unet import VideoUNet

TIMESTEP, TOKENS = 999, 77
SMALL = {"base_channels": 32, "channel_multipliers": [1, 2], "blocks_per_level": 1, "attention_levels": [1]}


def networks(small: bool, frames: int) -> tuple[VideoUNet, StructureEncoder]:
    """UNet and structure encoder without memory; with ``small`` just enough to see that the script works."""
    unet, structure = FULL_SIZE["unet"], FULL_SIZE["structure"]
    if small:
        unet, structure = ({**config, **SMALL} for config in (unet, structure))
        unet["head_channels"] = 32
    with torch.device("meta"):
        return VideoUNet(**unet, frames=frames), StructureEncoder(**structure)


def materialize(network: nn.Module) -> None:
    """Small random weights in bfloat16: the network never is in memory at a higher precision."""
    network.to(torch.bfloat16).to_empty(device="cpu").requires_grad_(False)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--latent", type=int, default=16, choices=range(16, 65, 8), help="latent height and width (default 16)"
    )
    parser.add_argument("--frames", type=int, default=5, help="of the segment (default 5)")
    parser.add_argument("--small", action="store_true", help="tiny networks, to see that the script works")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default 2)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)

    unet, structure = networks(args.small, args.frames)
    for name, network in (("UNet", unet), ("structure encoder", structure)):
        materialize(network)
        print(f"{name}: {sum(p.numel() for p in network.parameters()) / 1e6:.1f} million parameters", flush=True)

    low_quality, noisy = torch.randn(2, args.frames, 4, args.latent, args.latent).bfloat16()
    prompt = torch.randn(args.frames, TOKENS, FULL_SIZE["unet"]["prompt_channels"]).bfloat16()
    timesteps = torch.full((args.frames,), TIMESTEP)
    start = time.perf_counter()
    with torch.inference_mode():
        epsilon = unet(noisy, timesteps, prompt, structure(low_quality, timesteps))
    seconds = time.perf_counter() - start
    print(f"{args.frames} frames with latents of {args.latent} x {args.latent}: epsilon {tuple(epsilon.shape)}")
    print(f"one step: {seconds:.2f} s")
    print(f"peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
