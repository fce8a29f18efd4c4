"""The formats by name, with their options from text. Knows nothing of what they write."""

from collections.abc import Sequence

from workflows.config import ConfigError, load_config
from workflows.export_coco import Coco
from workflows.export_cvat import Cvat
from workflows.export_davis import Davis, Mose
from workflows.export_format import ExportFormat
from workflows.export_label_studio import LabelStudio
from workflows.export_mots import Mots
from workflows.export_sav import Sav
from workflows.export_yolo import YoloSeg
from workflows.export_youtube_vis import YoutubeVis

FORMATS: dict[str, type[ExportFormat]] = {
    each.name: each
    for each in (Coco, YoutubeVis, Davis, Mose, Sav, Mots, YoloSeg, Cvat, LabelStudio)
}


def make_format(name: str, options: Sequence[str] = ()) -> ExportFormat:
    """A format with options such as "counts=string". Raises ConfigError naming the choices."""
    if name not in FORMATS:
        raise ConfigError(f"format {name}; choices are {', '.join(FORMATS)}")
    try:
        return load_config(FORMATS[name], overrides=options)
    except ConfigError as error:
        raise ConfigError(f"format {name}: {str(error).replace('--set', '--option')}") from error
