"""Images, clips and their degraded versions: data sets, and the data modules that feed them to a run."""

from quantsr.data.clip_degradations import ClipDegradation
from quantsr.data.clips import ClipsDataModule
from quantsr.data.degradations import Degradation
from quantsr.data.files import read_folder, read_image
from quantsr.data.frames import DegradedCrops, FramesDataModule
from quantsr.data.images import ImagesDataModule
from quantsr.data.motion import MotionDataModule
from quantsr.data.pairs import AlignedPairs, PairsDataModule, match_folders
from quantsr.data.photos import PhotosDataModule
from quantsr.data.sampling import StepBatchSampler
from quantsr.data.video import VideoFrames, iter_frames, write_video

__all__ = [
    "AlignedPairs",
    "ClipDegradation",
    "ClipsDataModule",
    "Degradation",
    "DegradedCrops",
    "FramesDataModule",
    "ImagesDataModule",
    "MotionDataModule",
    "PairsDataModule",
    "PhotosDataModule",
    "StepBatchSampler",
    "VideoFrames",
    "iter_frames",
    "match_folders",
    "read_folder",
    "read_image",
    "write_video",
]
