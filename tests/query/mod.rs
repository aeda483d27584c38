//! Queries to a running server: whatever is asked, it does not matter whether spans are live, in blocks, or some here and some
//! there; what cannot be answered is refused or said to be partial; and a hostile query hurts nobody else.

mod clients;
mod damage;
mod hostile;
mod places;
mod shop;
mod stream;
mod terminal;
