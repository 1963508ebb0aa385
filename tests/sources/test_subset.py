"""Some images of a source are a source."""

from pathlib import Path

import numpy as np

from mcbeit.sources import SubsetSource
from mcbeit.sources.files import open_imagefolder


def test_a_subset_has_the_images_and_the_classes_of_the_whole(shapes: Path) -> None:
    whole = open_imagefolder(shapes)
    some = SubsetSource(whole, [20, 3])
    assert len(some) == 2
    assert [some.name(0), some.name(1)] == [whole.name(20), whole.name(3)]
    assert some.read(0) == whole.read(20)
    assert some.classes == whole.classes
    assert whole.labels is not None
    np.testing.assert_array_equal(some.labels, whole.labels[[20, 3]])


def test_other_images_are_another_source(shapes: Path) -> None:
    whole = open_imagefolder(shapes)
    names = {str(SubsetSource(whole, chosen).summary()) for chosen in ([1, 2], [2, 1], [1, 3])}
    assert len(names) == 3
