"""What the network looked at on a visitor's photo, when asked."""

import functools
import io
import logging
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from demo.service.engine import Engine
from demo.service.limits import Limits
from demo.service.problem import Problem
from demo.service.queue import Serving
from demo.service.reading import Photo, refusing
from runtime.errors import BadModel, SajiError
from runtime.heatmap import Heatmap

SIDE = 720  # pixels of the longer side of the picture that is sent

log = logging.getLogger("saji.heat")


@dataclass(frozen=True)
class Seen:
    """The class that the map is of, by its name in the model, and photo and map as one JPEG."""

    label: str
    jpeg: bytes


async def look(serving: Serving, photo: Photo) -> Seen:
    """The heat map of a photo by the model that serves, within a `place` of `serving`.

    Raises Problem: 404 when the model has none, and as `serving.classify` for the photo and the waiting.
    """
    engine = serving.engine
    work = functools.partial(_look, engine, serving.path.parent, photo, serving.limits)
    (result,) = await serving.finished(engine, [work])
    if isinstance(result, BaseException):
        raise result
    return result


def _look(engine: Engine, out: Path, photo: Photo, limits: Limits) -> Seen:
    place = engine.deployment.place_of(engine.classifier.candidate)
    heatmap = _of_model(out / place.folder if place else out, engine.since)
    with refusing(photo, limits):
        heat = heatmap.of(photo, limits.photo)
        picture = heat.over(photo, SIDE, limits.photo)
    picture.thumbnail((SIDE, SIDE))
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=85)
    return Seen(heat.label, jpeg.getvalue())


@functools.lru_cache(maxsize=1)  # by the time at which the engine was opened: another one may have another model
def _of_model(folder: Path, since: datetime) -> Heatmap:
    try:
        return Heatmap.of_model(folder)
    except SajiError as error:
        log.warning("no heat map", extra={"facts": {"reason": str(error)}})
        # What is wrong with a file names its folder, which is nobody's business
        detail = "this model's heat map cannot be opened" if isinstance(error, BadModel) else str(error)
        raise Problem(404, "no-heat-map", detail) from None
