"""Self-contained HTML pages: sections that other packages render, with embedded pictures and no outside requests."""

import base64
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
