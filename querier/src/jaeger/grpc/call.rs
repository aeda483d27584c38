//! A call from its headers to its last message: tenant, statuses, and being counted.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures::stream::{BoxStream, Stream};
use spanhouse_common::id::TenantId;
use spanhouse_common::source::SourceError;
use tonic::{Code, Request, Response, Status};

use crate::api::respond::{Counted, note_partial};
use crate::engine::EngineError;
use crate::find_trace::FindError;
use crate::jaeger::tenant::tenant;
use crate::jaeger::{Answer, JaegerError, JaegerQueries};

/// What stock Jaeger says of a trace nobody has.
pub(super) const NOT_FOUND: &str = "trace not found";

/// Longest text of a status: it is a header, and quotes what was asked.
const MAX_STATUS_BYTES: usize = 2048;

/// Answers with one message. Why it is not complete is told in the metadata, where clients that do not know of it pass over it.
pub(super) async fn unary<Q, A, F>(
    queries: &JaegerQueries,
    route: &'static str,
    request: Request<Q>,
    answer: impl FnOnce(TenantId, Q) -> F,
) -> Result<Response<A>, Status>
where
    F: Future<Output = Result<Answer<A>, Status>>,
{
    let mut counted = begin(queries, route);
    let answered = match named(queries, request) {
        Ok((tenant, request)) => answer(tenant, request).await,
        Err(refusal) => Err(refusal),
    };
    counted.status = answered.as_ref().map_or_else(|status| http_code(status.code()), |_| 200);
    answered.map(|Answer { found, partial }| {
        let mut response = Response::new(found);
        if let Some(why) = partial {
            note_partial(response.metadata_mut(), &why);
        }
        response
    })
}

/// Answers about the storage itself. No tenant is needed: a Jaeger asks when it starts, on behalf of nobody.
pub(super) fn of_nobody<A>(queries: &JaegerQueries, route: &'static str, answer: A) -> Response<A> {
    begin(queries, route).status = 200;
    Response::new(answer)
}

/// Answers with a stream, which `answer` may still refuse.
pub(super) async fn streamed<Q, M, F>(
    queries: &JaegerQueries,
    route: &'static str,
    request: Request<Q>,
    answer: impl FnOnce(TenantId, Q) -> F,
) -> Result<Response<Messages<M>>, Status>
where
    F: Future<Output = Result<BoxStream<'static, Result<M, Status>>, Status>>,
{
    let mut counted = begin(queries, route);
    let answered = match named(queries, request) {
        Ok((tenant, request)) => answer(tenant, request).await,
        Err(refusal) => Err(refusal),
    };
    match answered {
        Ok(messages) => Ok(Response::new(Messages { messages, counted })),
        Err(refusal) => {
            counted.status = http_code(refusal.code());
            Err(refusal)
        }
    }
}

fn begin(queries: &JaegerQueries, route: &'static str) -> Counted {
    Counted::of(&queries.deps().metrics, &queries.deps().clock, route.to_owned())
}

fn named<Q>(queries: &JaegerQueries, request: Request<Q>) -> Result<(TenantId, Q), Status> {
    let (metadata, _, request) = request.into_parts();
    match tenant(metadata.as_ref(), queries.deps().settings.multitenancy) {
        Ok(tenant) => Ok((tenant, request)),
        Err(refusal) => Err(refusal.to_grpc()),
    }
}

/// The messages of a streamed answer. Dropped early, it counts as a client that left.
pub(super) struct Messages<M> {
    messages: BoxStream<'static, Result<M, Status>>,
    counted: Counted,
}

impl<M> Stream for Messages<M> {
    type Item = Result<M, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(self.messages.as_mut().poll_next(context));
        match &next {
            Some(Ok(_)) => {}
            Some(Err(status)) => self.counted.status = http_code(status.code()),
            None => self.counted.status = 200,
        }
        Poll::Ready(next)
    }
}

/// The status of a failed question. `what` says which, in Jaeger's words.
pub(super) fn refused(what: &str, error: &JaegerError) -> Status {
    let code = match error {
        JaegerError::Invalid(_) => return Status::invalid_argument(short(error.to_string())),
        JaegerError::Find(FindError::Deadline) | JaegerError::Engine(EngineError::Deadline) => Code::DeadlineExceeded,
        JaegerError::Find(FindError::Busy(_) | FindError::Source(SourceError::OverBudget { .. }))
        | JaegerError::Engine(
            EngineError::Busy | EngineError::OverBudget(_) | EngineError::Source(SourceError::OverBudget { .. }),
        ) => Code::ResourceExhausted,
        _ => Code::Internal,
    };
    if code == Code::Internal {
        tracing::warn!(error = %error, "query failed");
    }
    Status::new(code, short(format!("{what}: {error}")))
}

fn short(mut text: String) -> String {
    if text.len() > MAX_STATUS_BYTES {
        text.truncate(text.floor_char_boundary(MAX_STATUS_BYTES));
        text.push_str(" ...");
    }
    text
}

/// Requests are counted by HTTP's codes, whatever the protocol.
fn http_code(code: Code) -> u16 {
    match code {
        Code::Ok => 200,
        Code::InvalidArgument => 400,
        Code::Unauthenticated => 401,
        Code::PermissionDenied => 403,
        Code::NotFound => 404,
        Code::ResourceExhausted => 429,
        Code::Unimplemented => 501,
        Code::DeadlineExceeded => 504,
        _ => 500,
    }
}
