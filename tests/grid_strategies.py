"""Hypothesis strategies for grids, and for the values that are hardest on them."""

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st

from odm_deploy.grid import Grid

# No deadline: how long an example takes says more about the machine's load than about the code.
unhurried = settings(max_examples=60, deadline=None)

# Wide, but such that levels and quotients of ordinary values stay finite in float32.
scales = st.one_of(
    st.floats(2.0**-60, 2.0**60, width=32),
    st.integers(-60, 60).map(lambda exponent: 2.0**exponent),
    st.floats(2.0**-10, 2.0**10, width=32),
)
bit_widths = st.integers(2, 8)


@st.composite
def ordinary_grids(draw: st.DrawFn) -> Grid:
    bits = draw(bit_widths)
    return Grid(draw(scales), draw(st.integers(0, 2**bits - 1)), bits)


@st.composite
def free_grids(draw: st.DrawFn) -> Grid:
    bits, scale = draw(bit_widths), draw(scales)
    center = scale * draw(st.floats(-300.0, 300.0))
    return Grid(scale, 2 ** (bits - 1), bits, center)


grids = st.one_of(ordinary_grids(), free_grids())


@st.composite
def values_near(draw: st.DrawFn, grid: Grid) -> np.ndarray:
    """float32 [n]: ordinary values, ties between levels and their neighbours, denormals, huge and infinite ones."""
    units = draw(st.lists(st.floats(-400.0, 400.0, width=32), min_size=1, max_size=30))
    ties = np.arange(-300, 300, dtype=np.float32) + np.float32(0.5)
    scale, center = np.float32(grid.scale), np.float32(grid.center or 0.0)
    near = np.concatenate([np.array(units, np.float32), ties]) * scale + center
    neighbours = np.concatenate([np.nextafter(near, np.float32(np.inf)), np.nextafter(near, np.float32(-np.inf))])
    tiny, huge = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).max
    extremes = np.array([0.0, -0.0, tiny, -tiny, huge, -huge, np.inf, -np.inf], np.float32)
    return np.concatenate([near, neighbours, extremes])
