"""Images and their degraded versions: data sets, and the data modules that feed them to a run."""

from quantsr.data.degradations import Degradation
from quantsr.data.files import read_folder, read_image
from quantsr.data.frames import DegradedCrops, FramesDataModule
from quantsr.data.images import ImagesDataModule
from quantsr.data.pairs import AlignedPairs, PairsDataModule, match_folders
from quantsr.data.photos import PhotosDataModule
from quantsr.data.sampling import StepBatchSampler

__all__ = [
    "AlignedPairs",
    "Degradation",
    "DegradedCrops",
    "FramesDataModule",
    "ImagesDataModule",
    "PairsDataModule",
    "PhotosDataModule",
    "StepBatchSampler",
    "match_folders",
    "read_folder",
    "read_image",
]
