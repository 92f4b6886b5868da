"""Self-contained HTML pages: sections that other packages render, with embedded pictures and no outside requests."""

import base64
import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from manifests.pictures import encode_picture


@dataclass(frozen=True)
class Section:
    """One part of a page; `body` is HTML made by `render`."""

    title: str
    body: Markup


def render(package: str, template: str, **values: object) -> Markup:
    """Fill a template of a package; every value is escaped unless it is Markup."""
    environment = Environment(
        loader=PackageLoader(package, "."), autoescape=select_autoescape(), undefined=StrictUndefined, trim_blocks=True
    )
    return Markup(environment.get_template(template).render(**values))


def page(title: str, lead: str, sections: list[Section]) -> str:
    """The whole page as text."""
    return render("pages", "page.html", title=title, lead=lead, sections=sections)


def picture(pixels: UInt8[np.ndarray, "h w 3"]) -> str:
    """A data URI that an <img> shows without another file."""
    return f"data:image/jpeg;base64,{base64.b64encode(encode_picture(pixels, 'JPEG', quality=85)).decode()}"


def round_numbers(low: float, high: float, most: int = 6) -> list[float]:
    """Ticks of an axis: at most about `most` multiples of 1, 2 or 5 times a power of ten, which enclose low to high."""
    span = (high - low) or abs(high) or 1.0
    power = math.floor(math.log10(span / most))
    step = next(s for s in (m * 10.0 ** (power + k) for k in (0, 1) for m in (1, 2, 5)) if span / s <= most)
    # 0.3 / 0.05 is a little less than 6.
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [float(f"{i * step:.10g}") for i in range(first, last + 1)]
