"""Keeping the grain: only the colour of a photo is denoised, and its luminance stays as it is."""

import torch
from torch import Tensor

# Rec. 601: the luminance that JPEG stores, and that a photo has when it is made gray.
LUMA_WEIGHTS = (0.299, 0.587, 0.114)


def keep_luminance(noisy_CHW: Tensor, clean_CHW: Tensor) -> Tensor:
    """The clean photo with the luminance of the noisy one: (3, H, W), both in sRGB from 0 to 1, and so is the result.

    What denoising changes is freed of its own luminance. Where that leaves the range of the photo, as beside blown
    highlights, the pixel is changed by as large a part as fits: its luminance is the same everywhere.
    """
    change_CHW = clean_CHW - noisy_CHW
    weights_C11 = torch.tensor(LUMA_WEIGHTS, device=noisy_CHW.device)[:, None, None]
    change_CHW -= (change_CHW * weights_C11).sum(dim=0, keepdim=True)
    room_CHW = torch.where(change_CHW > 0, 1 - noisy_CHW, noisy_CHW)
    share_HW = (room_CHW / change_CHW.abs().clamp(min=1e-12)).amin(dim=0).clamp(max=1)
    return noisy_CHW + change_CHW * share_HW
