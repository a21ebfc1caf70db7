"""The tabs of the page, one module each: `build` fills an open `gr.Tab`.

`opened` is the event to render by (`page.load`, or `tab.select` for what is slow): the page is built once, but another
deployment may serve by the time that somebody looks, and each visitor has a language.
"""
