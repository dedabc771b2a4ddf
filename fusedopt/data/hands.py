"""Rock-Paper-Scissors hands, drawn from a seed: a data set that needs no download.

A hand is twelve rounded parts (forearm, palm, two bones for each finger and for the thumb). A part is all points
within `radius` of a core, which is a segment or, for the palm, a box; the offset from the core gives the signed
distance (for antialiased edges) and the normal of a rounded surface (for Lambert shading). The parts are painted from
back to front, and folded fingers cast a soft shadow on what lies below them: that is what makes a fist look like one.
All images of a batch are drawn at once.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from fusedopt.data.images import ImageData

CLASSES = ("paper", "rock", "scissors")  # alphabetical, the label order of the photographed and the CGI data sets
SIZE = 28
_SUPERSAMPLING = 2
_BATCH = 64  # images drawn at once: small enough for the canvases to stay in the cache

# Index, middle, ring and little finger of a right hand seen from the palm, thumb to the left. Lengths are in widths of
# the palm, angles in radians from straight up, positive towards the little finger.
_KNUCKLES = ((-0.37, 0.36), (-0.13, 0.43), (0.12, 0.40), (0.35, 0.29))
_LENGTHS = (0.78, 0.88, 0.80, 0.62)
_RADII = (0.125, 0.13, 0.125, 0.11)
_FAN = (-0.24, -0.05, 0.14, 0.36)
_EXTENDED = ((True, True, True, True), (False, False, False, False), (True, True, False, False))  # by label
_SKIN = ((0.96, 0.80, 0.69), (0.90, 0.70, 0.55), (0.76, 0.55, 0.40), (0.55, 0.37, 0.26), (0.36, 0.24, 0.17))


class _Part(NamedTuple):
    """One rounded part of every hand of a batch; points are [B, 2], scalars [B]."""

    start: Tensor
    end: Tensor
    radius: Tensor
    shadow: Tensor
    half_width: float = 0.0  # widens the core from a segment to a box
    steepness: float = 0.93  # of the surface at the edge; 1 would be seen edge-on there, and black


class _Random:
    """Uniform draws of one value per image."""

    def __init__(self, count: int, generator: torch.Generator) -> None:
        self.count, self.generator = count, generator

    def __call__(self, low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(self.count, *shape, generator=self.generator)


def draw_hands(labels: Tensor, generator: torch.Generator) -> Tensor:
    """Draws one hand per label.

    Args:
        labels: int64 [N], indices into `CLASSES`.
        generator: the only source of randomness; the same state gives the same images.

    Returns:
        uint8 [N, 3, 28, 28], RGB.

    Raises:
        ValueError: a label is outside of 0, 1, 2.
    """
    if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < len(CLASSES):
        raise ValueError(f"labels must lie in 0..{len(CLASSES) - 1} ({', '.join(CLASSES)})")
    drawn = [_draw(batch, generator) for batch in torch.split(labels, _BATCH)]
    return torch.cat(drawn) if drawn else torch.empty(0, 3, SIZE, SIZE, dtype=torch.uint8)


def make_hands(train: int = 3000, test: int = 600, seed: int = 0) -> ImageData:
    """Draws a balanced data set of Rock-Paper-Scissors hands.

    The test images come from a generator of their own, so that they do not change with `train`.

    Args:
        train: number of training images; each class gets a third, to within one image.
        test: number of test images, likewise.
        seed: the same seed gives the same data set.

    Returns:
        ImageData with uint8 [N, 3, 28, 28] images and the classes paper, rock, scissors.
    """
    splits = []
    for stream, count in enumerate((train, test)):
        generator = torch.Generator().manual_seed(2 * seed + stream)
        labels = torch.arange(count) % len(CLASSES)
        labels = labels[torch.randperm(count, generator=generator)]
        splits.append((draw_hands(labels, generator), labels))
    (train_images, train_labels), (test_images, test_labels) = splits
    return ImageData("hands", CLASSES, train_images, train_labels, test_images, test_labels)


def _pose(labels: Tensor, random: _Random) -> list[_Part]:
    """Places the parts of every hand, back to front, in units of the palm's width with the palm's centre at 0."""
    n = len(labels)

    def point(x: float | Tensor, y: float | Tensor) -> Tensor:
        return torch.stack([torch.as_tensor(v, dtype=torch.float32).expand(n) for v in (x, y)], dim=1)

    def along(angle: Tensor, length: float | Tensor) -> Tensor:
        return torch.stack([angle.sin() * length, angle.cos() * length], dim=1)

    unshaded = torch.zeros(n)
    build = random(0.9, 1.12)  # slim to plump
    arm = random(-0.25, 0.25)
    parts = [
        _Part(point(0, -0.35), point(0, -0.4) - along(arm, 2.2), 0.30 * build, unshaded),
        _Part(point(0, -0.22), point(0, 0.2), 0.22 * build, unshaded, half_width=0.26, steepness=0.6),
    ]

    scissors = labels == CLASSES.index("scissors")
    spread = torch.where(scissors, random(1.1, 1.9), random(0.45, 1.25))
    lean = random(-0.08, 0.08)
    folded: list[_Part] = []
    for finger, (knuckle, length, radius, fan) in enumerate(zip(_KNUCKLES, _LENGTHS, _RADII, _FAN, strict=True)):
        extended = torch.tensor([pose[finger] for pose in _EXTENDED])[labels]
        base = point(*knuckle)
        # A V opens to both sides, so in scissors the middle finger leans away from the index finger.
        angle = torch.where(scissors & torch.tensor(finger == 1), 0.14, fan) * spread + lean + random(-0.05, 0.05)
        bone = 0.5 * length * random(0.92, 1.06)
        bend = random(-0.10, 0.10)
        middle = torch.where(extended[:, None], base + along(angle, bone), base + point(0, 0.04))
        fold = point(-0.25 * knuckle[0], -0.38) + random(-0.02, 0.02, 2)
        tip = torch.where(extended[:, None], middle + along(angle + bend, bone), base + fold)
        thick = radius * build
        parts.append(_Part(base, middle, thick, unshaded))
        folded.append(_Part(middle, tip, thick * torch.where(extended, 0.92, 1.05), torch.where(extended, 0.0, 0.5)))
    parts += folded

    paper = (labels == CLASSES.index("paper"))[:, None]
    thumb_base = point(-0.36, -0.28)
    out = random(-1.05, -0.5)
    joint = torch.where(paper, thumb_base + along(out, 0.42), point(-0.42, 0.02) + random(-0.04, 0.04, 2))
    across = point(random(-0.02, 0.2), random(-0.16, 0.0))
    tip = torch.where(paper, joint + along(out + random(0.1, 0.5), 0.36), across)
    parts.append(_Part(thumb_base, joint, 0.17 * build, unshaded))
    parts.append(_Part(joint, tip, 0.135 * build, torch.where(paper[:, 0], 0.0, 0.55)))
    return parts


def _grid(labels: Tensor, random: _Random) -> tuple[Tensor, Tensor, Tensor]:
    """Maps the pixels into each hand's own frame: x and y [B, S, S], and the width of a pixel there [B]."""
    resolution = SIZE * _SUPERSAMPLING
    axis = (torch.arange(resolution) + 0.5) / resolution * 2 - 1
    shift = random(-0.16, 0.16, 2)
    right = axis[None, None, :] - shift[:, 0, None, None]
    up = -axis[None, :, None] - shift[:, 1, None, None]
    rock = labels == CLASSES.index("rock")
    angle, zoom = random(-1.0, 1.0), random(1.1, 1.55) * torch.where(rock, 0.88, 1.0)
    mirror = torch.where(random(0, 1) < 0.5, -1.0, 1.0)  # left or right hand
    squash = random(0.85, 1.1)  # seen from slightly aside
    cos, sin = (zoom * angle.cos())[:, None, None], (zoom * angle.sin())[:, None, None]
    x = (cos * right - sin * up) * (mirror / squash)[:, None, None]
    y = sin * right + cos * up
    # Centres the hand with its fingers; otherwise a fist would be told by its place alone.
    y = y + torch.where(rock, 0.02, 0.34)[:, None, None]
    return x, y, zoom * 2 / resolution


def _draw(labels: Tensor, generator: torch.Generator) -> Tensor:
    random = _Random(len(labels), generator)
    x, y, pixel = _grid(labels, random)
    light_angle, light_height = random(0, 2 * math.pi), random(0.55, 0.8)
    sideways = (1 - light_height.square()).sqrt()
    light = [v[:, None, None] for v in (light_angle.sin() * sideways, light_angle.cos() * sideways, light_height)]

    shade = torch.zeros_like(x)  # brightness of the skin, times coverage
    cover = torch.zeros_like(x)
    for part in _pose(labels, random):
        offset_x, offset_y = _offset_from_core(part, x, y)
        distance = torch.hypot(offset_x, offset_y)
        radius = part.radius[:, None, None]
        edge = distance - radius
        if bool(part.shadow.any()):
            shade *= 1 - part.shadow[:, None, None] * (edge.clamp(min=0) * -9).exp_()
        scale = part.steepness / torch.maximum(distance, radius)
        normal_x, normal_y = offset_x * scale, offset_y * scale
        normal_z = (1 - normal_x.square() - normal_y.square()).sqrt()
        lit = (normal_x * light[0] + normal_y * light[1] + normal_z * light[2]).clamp_(min=0)
        alpha = (0.5 - edge / pixel[:, None, None]).clamp_(0, 1)
        shade = torch.lerp(shade, 0.42 + 0.68 * lit, alpha)
        cover = torch.lerp(cover, torch.ones_like(cover), alpha)

    skin = _skin(random)
    image = _background(skin, random) * (1 - cover[:, None]) + skin[:, :, None, None] * shade[:, None]
    image = F.avg_pool2d(image * random(0.75, 1.1)[:, None, None, None], _SUPERSAMPLING)
    image = image + 0.025 * torch.randn(image.shape, generator=generator)  # sensor noise
    return (image.clamp(0, 1) * 255).round().to(torch.uint8)


def _offset_from_core(part: _Part, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Vector from the nearest point of the part's core to each pixel."""
    from_x, from_y = x - part.start[:, 0, None, None], y - part.start[:, 1, None, None]
    axis = part.end - part.start
    axis_x, axis_y = axis[:, 0, None, None], axis[:, 1, None, None]
    length = (axis_x.square() + axis_y.square()).clamp(min=1e-6)
    position = ((from_x * axis_x + from_y * axis_y) / length).clamp_(0, 1)
    offset_x, offset_y = from_x - position * axis_x, from_y - position * axis_y
    if part.half_width:  # the only box, the palm, stands upright
        offset_x = offset_x - offset_x.clamp(-part.half_width, part.half_width)
    return offset_x, offset_y


def _skin(random: _Random) -> Tensor:
    """Skin colours [B, 3], anywhere between the palette's tones."""
    palette = torch.tensor(_SKIN)
    tone = random(0, len(_SKIN) - 1)
    below = tone.long().clamp(max=len(_SKIN) - 2)
    return torch.lerp(palette[below], palette[below + 1], (tone - below)[:, None]) * random(0.95, 1.05, 3)


def _background(skin: Tensor, random: _Random) -> Tensor:
    """Backgrounds [B, 3, S, S]: a wall with a soft change of colour and coarse stains.

    The wall is clearly lighter or darker than the skin: counted round a circle, its brightness is at least a quarter
    of the range away.
    """
    resolution = SIZE * _SUPERSAMPLING
    darkest, span = 0.1, 0.85
    brightness = darkest + span * ((skin.mean(dim=1) - darkest) / span + random(0.25, 0.75)).remainder(1)
    corners = brightness[:, None, None, None] + random(-0.15, 0.15, 3, 2, 2)
    stains = random(-0.07, 0.07, 1, 7, 7)
    smooth = [F.interpolate(v, size=resolution, mode="bilinear", align_corners=True) for v in (corners, stains)]
    return (smooth[0] + smooth[1]).clamp(0, 1)
