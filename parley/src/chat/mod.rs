//! `parley chat`: a terminal client. `model` is what it knows and decides, `words` what is typed, `view` how it looks,
//! `terminal` the loop around them.

mod line;
mod model;
mod terminal;
mod view;
mod words;

pub(crate) use terminal::run;
