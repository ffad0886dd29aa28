"""A run behind OpenAI's completions and chat completions: posterior samples for any client of that interface.

=========  ===================================================================
file       what it knows
=========  ===================================================================
limits.py  what one request may ask for, and how much may wait
desk.py    requests that wait, and the one worker that answers them in batches
wire.py    what stands in requests and answers
app.py     addresses, keys, limits, health and metrics
=========  ===================================================================
"""
