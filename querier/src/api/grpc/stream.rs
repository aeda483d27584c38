//! The messages of one call, and when they go out.
//!
//! The query runs inside the stream: who drops the stream, as a client that leaves does, ends the query.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, Stream};
use parking_lot::Mutex;
use tonic::Status;

use super::super::ask::set_jobs;
use super::super::error::ApiError;
use super::super::respond::{Counted, partial_trailer};
use crate::engine::Progress;
use crate::engine::answer::{QueryStats, SearchAnswer, SeriesAnswer};
use crate::metrics::CLIENT_GONE;

/// Shortest time between two messages of progress.
const PACE: Duration = Duration::from_millis(500);

pub(super) type Messages<M> = Pin<Box<dyn Stream<Item = Result<M, Status>> + Send>>;

/// A whole answer, and why it is not complete.
pub(super) struct Answered<M> {
    pub(super) packets: Vec<M>,
    pub(super) partial: Option<String>,
}

/// The newest counts the engine told, until somebody reads them.
#[derive(Debug, Default)]
pub(super) struct Latest(Mutex<Option<QueryStats>>);

impl Latest {
    fn take(&self) -> Option<QueryStats> {
        let mut stats = self.0.lock().take()?;
        set_jobs(&mut stats);
        Some(stats)
    }
}

impl Progress<SearchAnswer> for Latest {
    fn so_far(&self, answer: SearchAnswer) {
        *self.0.lock() = Some(answer.stats);
    }
}

impl Progress<SeriesAnswer> for Latest {
    fn so_far(&self, answer: SeriesAnswer) {
        *self.0.lock() = Some(answer.stats);
    }
}

type Answer<M> = BoxFuture<'static, Result<Answered<M>, ApiError>>;

/// Where progress comes from, and the message it makes.
type News<M> = (Arc<Latest>, fn(&QueryStats) -> M);

struct State<M> {
    counted: Counted,
    /// `None` when it was awaited.
    answer: Option<Answer<M>>,
    news: Option<News<M>>,
    ready: VecDeque<Result<M, Status>>,
}

/// Messages of progress while `answer` is not there, then its packets.
pub(super) fn messages<M: Send + 'static>(counted: Counted, answer: Answer<M>, news: Option<News<M>>) -> Messages<M> {
    let state = State { counted, answer: Some(answer), news, ready: VecDeque::new() };
    Box::pin(stream::unfold(state, |mut state| async move {
        let message = state.next().await?;
        Some((message, state))
    }))
}

impl<M> State<M> {
    async fn next(&mut self) -> Option<Result<M, Status>> {
        if let Some(answer) = &mut self.answer {
            loop {
                let answered = tokio::select! {
                    biased;
                    answered = &mut *answer => answered,
                    () = tokio::time::sleep(PACE) => {
                        match self.news.as_ref().and_then(|(latest, message)| Some(message(&latest.take()?))) {
                            Some(message) => return Some(Ok(message)),
                            None => continue,
                        }
                    }
                };
                match answered {
                    Ok(answered) => {
                        self.ready.extend(answered.packets.into_iter().map(Ok));
                        self.ready.extend(answered.partial.map(|why| Err(partial_trailer(&why))));
                    }
                    Err(error) => self.ready.push_back(Err(self.counted.refuse(&error))),
                }
                break;
            }
            self.answer = None;
        }
        let message = self.ready.pop_front();
        // Nobody asks again after a status, so the last message counts as taken.
        if self.ready.is_empty() && self.counted.status == CLIENT_GONE {
            self.counted.status = 200;
        }
        message
    }
}
