"""Small PDFs made by hand: pages of text at places in, bytes out."""

Run = tuple[int, int, str]
"""Left, bottom (from the page's lower edge), text."""


def pdf(*pages, trailer=b""):
    """A PDF whose pages hold these runs of text, in Helvetica of 10 points."""
    objects = [(1, b"<</Type/Catalog/Pages 2 0 R>>")]
    kids = []
    for number, runs in enumerate(pages):
        shown = b" ".join(
            b"1 0 0 1 %d %d Tm (%s) Tj" % (x, y, text.translate({40: "\\(", 41: "\\)"}).encode("latin-1"))
            for x, y, text in runs
        )
        stream = b"BT /F1 10 Tf %s ET" % shown
        page, content = 10 + 2 * number, 11 + 2 * number
        kids.append(b"%d 0 R" % page)
        parts = b"/MediaBox[0 0 612 792]/Resources<</Font<</F1 3 0 R>>>>"
        objects.append((page, b"<</Type/Page/Parent 2 0 R/Contents %d 0 R%s>>" % (content, parts)))
        objects.append((content, b"<</Length %d>>stream\n%s\nendstream" % (len(stream), stream)))
    objects.append((2, b"<</Type/Pages/Kids[%s]/Count %d>>" % (b" ".join(kids), len(kids))))
    objects.append((3, b"<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>"))
    body = b"".join(b"%d 0 obj%s endobj\n" % item for item in sorted(objects))
    return b"%%PDF-1.4\n%strailer<</Root 1 0 R/Size 99%s>>\n%%%%EOF" % (body, trailer)
