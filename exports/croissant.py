"""Croissant: croissant.json, which describes every file and the table of views in JSON-LD.

Source: MLCommons Croissant 1.0. The format has tars and parquet but no samples of several members and no lineage,
which have the prefix `spinset`.
"""

import json
from collections.abc import Iterator
from typing import Any

from exports.huggingface import filters, policies, totals
from manifests.dataset import Dataset
from manifests.shards import SUFFIXES

VOCABULARY = "https://spinset.invalid/vocabulary/"
"""A name and not an address: the domain .invalid is reserved, so it cannot collide with a vocabulary of others."""

MIME = {".tar": "application/x-tar", ".parquet": "application/x-parquet"}

_TERMS = (
    "citeAs column dataBiases dataCollection equivalentProperty extract field fileObject fileProperty fileSet format "
    "includes isLiveDataset jsonPath key md5 parentField path personalSensitiveInformation recordSet references regex "
    "repeated replace samplingRate separator source subField transform"
)
CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "rai": "http://mlcommons.org/croissant/RAI/",
    "sc": "https://schema.org/",
    "spinset": VOCABULARY,
    **{term: f"cr:{term}" for term in _TERMS.split()},
}

FIELDS = {
    "key": ("sc:Text", "name of the sample in its tar"),
    "identity": ("sc:Integer", "number of the person"),
    "view": ("sc:Integer", "number of the view in the rig"),
    "azimuth": ("sc:Float", "degrees towards the person's own left, 0 in front"),
    "elevation": ("sc:Float", "degrees upwards"),
    "c2w": ("sc:Float", "camera-to-world matrix, OpenCV axes, 16 numbers row by row"),
    "K": ("sc:Float", "intrinsics divided by the image size, 9 numbers row by row"),
}
REPEATED = ("c2w", "K")


def croissant(copy: Dataset) -> Iterator[tuple[str, bytes]]:
    """The description of a copied dataset."""
    plan = copy.plan
    heads, views, _ = totals(copy)
    document = {
        "@context": dict(sorted(CONTEXT.items())),
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": f"spinset-{plan.fingerprint[:12]}",
        "description": f"{heads} synthetic people, {views} views: colour, alpha, normals and cameras.",
        "version": "1.0.0",
        "citeAs": f"spinset dataset {plan.fingerprint}",
        "license": str(plan.source.get("licence", "unknown")),
        "url": f"urn:sha256:{plan.fingerprint}",
        "distribution": [*_files(copy), *_sets(copy)],
        "recordSet": [_records()],
        "spinset:fingerprint": plan.fingerprint,
        "spinset:source": json.dumps(plan.source, sort_keys=True),
        "spinset:seed": plan.seed,
        "spinset:filters": filters(plan),
        "spinset:policies": [json.dumps(policy, sort_keys=True) for policy in policies(plan)],
    }
    yield "croissant.json", (json.dumps(document, indent=2) + "\n").encode()


def _files(copy: Dataset) -> Iterator[dict[str, Any]]:
    for shard in copy.committed():
        record = copy.done(shard)["files"]
        for suffix in SUFFIXES:
            name = copy.file(shard, suffix)
            yield {
                "@type": "cr:FileObject",
                "@id": name,
                "name": name,
                "contentUrl": name,
                "contentSize": f"{record[suffix]['size']} B",
                "encodingFormat": MIME[suffix[suffix.rindex(".") :]],
                "sha256": record[suffix]["sha256"],
            }


def _sets(copy: Dataset) -> Iterator[dict[str, Any]]:
    tars = [{"@id": copy.file(shard, ".tar")} for shard in copy.committed()]
    for member, extension in copy.plan.members.items():
        kind = extension.rpartition(".")[2].replace("jpg", "jpeg")
        yield {
            "@type": "cr:FileSet",
            "@id": f"{member}-members",
            "name": f"{member}-members",
            "description": f"The member {extension} of every sample.",
            "containedIn": tars,
            "encodingFormat": "application/json" if kind == "json" else f"image/{kind}",
            "includes": f"*.{extension}",
        }
    yield {
        "@type": "cr:FileSet",
        "@id": "views-tables",
        "name": "views-tables",
        "description": "One row per view: its camera, and where its members lie.",
        "encodingFormat": MIME[".parquet"],
        "includes": "shards/*.views.parquet",
    }


def _records() -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "views",
        "name": "views",
        "key": {"@id": "views/key"},
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"views/{column}",
                "name": f"views/{column}",
                "description": description,
                "dataType": kind,
                **({"repeated": True} if column in REPEATED else {}),
                "source": {"fileSet": {"@id": "views-tables"}, "extract": {"column": column}},
            }
            for column, (kind, description) in FIELDS.items()
        ],
    }
