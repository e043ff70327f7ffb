"""What the tests of several readers need: an archive of texts, and records apart from dropped rows."""

import io
import tarfile

from fintune.data.records import Dropped
from fintune.tasks.base import Record


def archive(path, files, links=()):
    with tarfile.open(path, "w:gz") as tar:
        for name, target in links:
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, target
            tar.addfile(link)
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def parts(items):
    items = list(items)
    return [i for i in items if isinstance(i, Record)], [i for i in items if isinstance(i, Dropped)]
