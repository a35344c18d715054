"""The verbs of `jgolf data`."""

from __future__ import annotations

VERBS: dict[str, str] = {
    "split": "jgolf.data.split:split",
    "pack": "jgolf.data.pack:pack",
    "fuse": "jgolf.data.fuse:fuse",
    "tokenizer": "jgolf.data.train_tokenizer:tokenizer",
    "download": "jgolf.data.download:download",
    "demo": "jgolf.data.demo:demo",
    "inspect": "jgolf.data.inspect:inspect",
}
"""Verb → "module:function"."""

HELP: dict[str, str] = {
    "split": "divide a text into documents to train on and others held out",
    "pack": "pack documents into token shards",
    "fuse": "make one token of each space and the case mark after it in CaseOps shards",
    "tokenizer": "train a tokenizer",
    "download": "fetch published shards and their tokenizer",
    "demo": "build a small corpus from this Python's own texts",
    "inspect": "show what shards hold",
}
"""Verb → what it does, in a line."""
