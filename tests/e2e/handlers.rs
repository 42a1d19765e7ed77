//! Python handlers from the client's request to the process that answers it, and back; and
//! what becomes of those that crash, hang, leak, or look around.

mod answers;
mod bounds;
mod hostile;
mod isolation;
mod loading;
mod memory;
mod packages;
mod streams;
mod warm;
mod workers;

/// Answers with what it was sent.
const ECHO: &str = "
def model_fn(model_dir):
    return None

def transform_fn(model, body, content_type, accept):
    return body
";

/// Runs the body, and answers with the text that it calls `answer`.
const RUN: &str = "
import os, sys, time

kept = []

def model_fn(model_dir):
    return model_dir

def transform_fn(model, body, content_type, accept):
    names = {'kept': kept, 'model_dir': model}
    exec(bytes(body).decode(), globals(), names)
    return str(names.get('answer', '')), 'text/plain'
";
