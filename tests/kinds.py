"""The constraints under which every initialization is tested: each constrains a network."""

from functools import partial

from lcw_lightning import constrain

KINDS = {
    "none": partial(constrain, kind="none"),
    "lcw": constrain,
    "project": partial(constrain, method="project"),
    "cwn": partial(constrain, kind="cwn"),
    "wn": partial(constrain, kind="wn"),
}
