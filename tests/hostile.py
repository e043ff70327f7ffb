"""A text that would run a script where a page does not escape it: as markup, in attributes, in templates."""

HOSTILE = (
    "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"
    "\"' {{ 7 * 7 }} {% x %}"
)
