"""The live web page: a small server on this machine that shows jobs as they are, to whoever knows its address.

`model` says what is shown (pure), `feed` looks at the jobs, `board` keeps the newest look for any number of readers,
`server` gives it out, and `page/` is what the browser gets. It only reads, with the rights of the user who started it.
"""
