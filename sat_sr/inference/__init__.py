"""From a picture in memory to a larger one, exactly, in bounded memory.

upscaler.py      the whole way, and the Python interface     pixels.py        PIL, numpy, tensors: in and out
job.py           what is decided before: canvas.py, schedule.py; planner.py, by memory.py (what a schedule takes for a
                 workload.py) and budget.py, free_memory.py (what there is)
denoiser.py      one network call over a canvas, group by group: frontier.py, hidden_state.py and weights.py keep what
                 is needed between groups, on the device, or on the host: transfer.py, fetch_ahead.py, host_pages.py
around a call    placement.py and moving_grid.py, detail.py, backprojection.py; color_fix.py afterwards
ranks.py         one picture over several processes, a part each (canvas_part.py); rendezvous.py: how they meet
"""
