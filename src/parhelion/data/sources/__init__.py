"""What `--data` names: its spelling is checked in `parhelion.data.spelling`, and here it is opened."""

from typing import TYPE_CHECKING

from parhelion.lazy import lazily

if TYPE_CHECKING:
    from parhelion.data.samples import Sample, Source, Split
    from parhelion.data.sources.fashion import bundled_images
    from parhelion.data.sources.opening import open_source
else:
    __getattr__, __dir__ = lazily(
        __name__,
        {
            "Sample": "parhelion.data.samples",
            "Source": "parhelion.data.samples",
            "Split": "parhelion.data.samples",
            "bundled_images": "parhelion.data.sources.fashion",
            "open_source": "parhelion.data.sources.opening",
        },
    )

__all__ = ["Sample", "Source", "Split", "bundled_images", "open_source"]
