"""How strongly a photo is denoised: as its noise calls for, or as the user says; and which photos are left alone."""

import math
from dataclasses import dataclass
from typing import Literal

from model.estimate import NoiseEstimate

Strength = float | Literal["auto"]

# What a clean photo may have, in 8-bit levels a channel of grain, on an axis of colour, and as a share of its pixels.
# Chosen on the training photos: nearly all that reach them show real noise to the eye, or are texture all over.
CLEAN_GRAIN_SIGMA = 1.4
CLEAN_CHROMA_SIGMA = 1.5
CLEAN_IMPULSE_DENSITY = 6e-4

TEXTURE = "clean: what looked like noise is texture"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dose:
    """What is done to one photo.

    Attributes:
        strength: share of the network's correction that is applied: 0 changes nothing, 1 all that it finds.
        noise: what the network is told of the photo's noise.
        keeps_grain: only the colour is denoised (see `model.grain`).
    """

    strength: float
    noise: NoiseEstimate
    keeps_grain: bool = False


def check_strength(strength: Strength) -> None:
    """Raises ValueError unless it is "auto" or a number from 0 to 1."""
    if strength != "auto" and not (isinstance(strength, int | float) and 0 <= strength <= 1):  # also refuses NaN
        raise ValueError(f"strength is {strength}: expected auto, or a number from 0 to 1")


def choose_dose(noise: NoiseEstimate, strength: Strength, *, keeps_grain: bool) -> Dose:
    """What a photo that is not left alone is given: "auto" is all that the network finds, told how noisy it is.

    A number is a share of that correction, and not of what the network is told: half of the noise is left at 0.5,
    and none of the photo is changed at 0, whatever the weights.
    """
    return Dose(strength=1.0 if strength == "auto" else strength, noise=noise, keeps_grain=keeps_grain)


def why_left_alone(noise: NoiseEstimate, strength: Strength, *, keeps_grain: bool, is_gray: bool) -> str | None:
    """Why a photo stays as it is, byte for byte; None where it is to be denoised.

    A number is the user's own judgement: but for 0, no photo is too clean for it. Nor is one with salt and pepper,
    which is no grain either.
    """
    if strength == 0:
        return "the strength is 0"
    if noise.impulses is not None:
        return None
    if keeps_grain and is_gray:
        return "gray: it has no colour noise, and its grain is to be kept"
    if strength != "auto":
        return None
    if noise.is_drawn:
        return "clean: drawn, of letters, lines or dots without noise"
    if noise.impulse_density > CLEAN_IMPULSE_DENSITY or calls_for_network(
        noise, keeps_grain=keeps_grain, is_gray=is_gray
    ):
        return None
    if keeps_grain:
        return f"clean: {_levels(noise.chroma_sigma, 'colour noise')}"
    return f"clean: {_levels(noise.sigma, 'noise')}"


def calls_for_network(noise: NoiseEstimate, *, keeps_grain: bool, is_gray: bool) -> bool:
    """Whether a photo has noise, other than single pixels, that is to be removed."""
    if noise.is_drawn or (keeps_grain and is_gray):
        return False
    has_colour_noise = noise.sure_chroma_sigma > CLEAN_CHROMA_SIGMA
    has_grain = noise.sure_luma_sigma / math.sqrt(1 if is_gray else 3) > CLEAN_GRAIN_SIGMA
    return has_colour_noise or (has_grain and not keeps_grain)


def _levels(sigma: float, kind: str) -> str:
    """In whole levels: photos are counted by their reasons."""
    whole = int(sigma)
    return f"less than 1 level of {kind}" if whole == 0 else f"{whole} to {whole + 1} levels of {kind} or texture"
