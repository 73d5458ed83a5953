"""Imported last into the process that others are forked from: what they need of networks is done there once.

The first capture of a process takes seconds of lazy imports and tables of torch. Equal networks are traced once, as in
the tests themselves, and the network of most commands is among them.
"""

import gc

from traced import trace_equals_once

import amed_env
import amed_env.tracing.trace

amed_env.tracing.trace.trace = trace_equals_once
amed_env.make_task("digits-cnn")
gc.collect()
gc.freeze()  # the collector of a forked process would copy every page that it marks
