"""The live page of ``splitsight demo``: what the cloud sees, what an attacker makes of it, and controls for both.

The process that started cloud, adversary and edge serves it. Its main thread supervises the processes
(:mod:`scenarios.web.run`) and alone changes them, on request (:mod:`scenarios.web.state`); the web server
(:mod:`scenarios.web.server`) has a thread of its own and only reads what stands on the board. Pictures are JPEG, latest
only, asked for by the browser when it has drawn the last ones; the page (:mod:`scenarios.web.page`) holds no state, so
that any number of tabs show the same.
"""
