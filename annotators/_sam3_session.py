"""SAM 3's detector and tracker over a whole clip, in bounded RAM and without code from the hub."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from openuni.manifests.contracts.inference import Precision, inference
from openuni.manifests.errors import OpenUniError

MAX_TOKENS = 32  # positions of the text encoder, with its start and end tokens


class PromptedFrame(NamedTuple):
    """The instances of one frame."""

    labels: np.ndarray  # int32 [H, W]: -1 is background, else the library's instance number, from 0
    scores: dict[int, float]  # instance number -> score of its first detection, 0 to 1
    prompts: dict[int, str]  # instance number -> the prompt that found it


class FramesOnDemand:
    """The frames of a clip as a session stores them: each is resized and normalized when it is asked for.

    The library stores a dictionary of all frames instead: 12 MB for each at 1008 x 1008. Its length enters the memory
    attention, so it is that of the whole clip.
    """

    def __init__(self, frames: np.ndarray, processor: Any, device: Any) -> None:
        self.frames, self.processor, self.device = frames, processor, device

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: int) -> Any:
        """Network input float32 [3, S, S]; the aspect ratio is not preserved."""
        import torch

        # channels first, which the processor tries first: a frame with a side of 3 px is read as it is
        frame = torch.from_numpy(self.frames[index : index + 1].transpose(0, 3, 1, 2).copy())
        given = self.processor.video_processor(
            videos=[frame], input_data_format="channels_first", return_tensors="pt", device=self.device
        )
        return given["pixel_values_videos"][0, 0]


class HostOperations:
    """What SAM 3 uses of the compiled package `cv-utils`, with OpenCV and NumPy: equal results on all devices."""

    def generic_nms(self, ious: Any, scores: Any, iou_threshold: float, use_iou_matrix: bool) -> Any:
        """Indices, int64, of the masks that survive greedy non-maximum suppression, best score first.

        `ious`: [n, n], of all pairs; `scores`: [n]. A mask is discarded if its IoU with a better one that stays is
        above the threshold.
        """
        import torch

        if not use_iou_matrix:
            raise ValueError("expected the IoU of all pairs of masks")
        table = ious.float().cpu().numpy()
        left = np.argsort(-scores.float().cpu().numpy(), kind="stable")
        kept = []
        while left.size:
            best, left = left[0], left[1:]
            kept.append(int(best))
            left = left[table[best, left] <= iou_threshold]
        return torch.tensor(kept, dtype=torch.int64, device=ious.device)

    def cc_2d(self, masks: Any, get_counts: bool) -> tuple[Any, Any]:
        """Connected components (with diagonal neighbours) of masks, uint8 [n, 1, h, w].

        Returns two int32 tensors of that shape: the component of each pixel, 0 outside of the mask, and the area of
        that component in pixels.
        """
        import cv2
        import torch

        labels, areas = np.zeros((2, *masks.shape), np.int32)
        for place, mask in enumerate(masks[:, 0].cpu().numpy()):
            _, labels[place, 0], stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
            areas[place, 0] = stats[:, cv2.CC_STAT_AREA][labels[place, 0]]
        return torch.from_numpy(labels).to(masks.device), torch.from_numpy(areas).to(masks.device)


def use_host_operations(library: Any) -> None:
    """Give the library our `HostOperations`.

    Without them it skips suppression and the filling of holes; if the package `kernels` is installed, it downloads
    compiled code for them during a run. `library`: transformers' module of the SAM 3 video network.
    """
    if not hasattr(library, "cv_utils_kernel"):
        raise OpenUniError(
            "sam3: this version of transformers loads the operations for SAM 3 in another way. Install the version "
            "that constraints.txt names."
        )
    library.cv_utils_kernel = HostOperations()


def prompted_frames(
    network: Any, processor: Any, frames: np.ndarray, prompts: Sequence[str], precision: Precision
) -> Iterator[PromptedFrame]:
    """Detect and track all instances of `prompts` in a clip, uint8 [T, H, W, 3] RGB; yields its T frames in order.

    As the library's pass over a stored video, with its delay: a frame follows when the frames are known that decide
    whether its new instances stay. Where instances of one prompt overlap, the one with the higher tracking score is on
    top; of different prompts, the later prompt.
    """
    device = next(network.parameters()).device
    session = processor.init_video_session(inference_device=device)
    session.processed_frames = FramesOnDemand(frames, processor, device)
    session.video_height, session.video_width = frames.shape[1], frames.shape[2]
    processor.add_text_prompt(session, list(prompts))
    waiting: list[Any] = []
    for index in range(len(frames)):
        with inference(device.type, precision):
            waiting.append(network(inference_session=session, frame_idx=index))
        session.hotstart_removed_obj_ids.update(waiting[-1].removed_obj_ids)
        prune_session(session, index, network)
        ready = len(waiting) if index == len(frames) - 1 else max(0, len(waiting) - max(0, network.hotstart_delay - 1))
        for output in waiting[:ready]:
            yield _painted(session, processor, output, frames.shape[1:3])
        waiting = waiting[ready:]


def _painted(session: Any, processor: Any, output: Any, size_px: tuple[int, ...]) -> PromptedFrame:
    """One frame from the network's output, at the size of the frames."""
    found = processor.postprocess_outputs(session, output)
    labels = np.full(size_px, -1, np.int32)
    numbers = found["object_ids"].tolist()
    prompts = {number: session.obj_id_to_prompt_id[number] for number in numbers}
    masks = found["masks"].cpu().numpy()
    for place in sorted(range(len(numbers)), key=lambda place: prompts[numbers[place]]):
        labels[masks[place]] = numbers[place]
    scores = dict(zip(numbers, found["scores"].tolist(), strict=True))
    return PromptedFrame(labels, scores, {number: session.prompts[prompt] for number, prompt in prompts.items()})


def prune_session(session: Any, index: int, network: Any) -> None:
    """Drop session state that no frame after `index` needs.

    The library keeps masks of every instance and frame, and copies its lists of past frames for every frame. What it
    reads of the past are the memories of `num_maskmem` frames and of the last conditioning frames, object pointers,
    and the number of frames in which an instance was not detected, up to a threshold.
    """
    config = network.tracker_model.config
    for place, outputs in session.output_dict_per_obj.items():
        session.mask_inputs_per_obj[place].clear()
        session.frames_tracked_per_obj[place].clear()
        conditioning, tracked = outputs["cond_frame_outputs"], outputs["non_cond_frame_outputs"]
        for entry in (*conditioning.values(), *tracked.values()):
            entry.pop("high_res_masks", None)
            entry.pop("pred_masks", None)
        is_bounded = config.max_cond_frame_num >= 0
        recent = sorted(conditioning)[-config.max_cond_frame_num :] if is_bounded else list(conditioning)
        for at in {*conditioning, *tracked} - {*recent}:
            if index - at >= config.num_maskmem:
                for entry in (conditioning.get(at, {}), tracked.get(at, {})):
                    entry.pop("maskmem_features", None)
                    entry.pop("maskmem_pos_enc", None)
        for at in [
            at for at in tracked if index - at >= max(config.num_maskmem, config.max_object_pointers_in_encoder)
        ]:
            del tracked[at]
    session.obj_id_to_tracker_score_frame_wise.clear()
    session.suppressed_obj_ids.clear()
    for past, count in (
        (session.unmatched_frame_inds, network.hotstart_unmatch_thresh),
        (session.overlap_pair_to_frame_inds, network.hotstart_dup_thresh),
    ):
        for key in past:
            past[key] = past[key][: max(1, count)]
