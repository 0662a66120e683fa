//! The body of a request as it is sent: piece by piece, from where the pieces stand.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Frame, SizeHint};

use crate::domain::body::Body;

/// Bytes of one frame. A connection that cannot write several buffers at once copies a frame whole:
/// no more than this of a body of 32 MB is in memory twice.
const FRAME_MAX: usize = 128 * 1024;

/// Returns the body for the client. Its size is known, so that it is sent with a `content-length`.
pub(super) fn body(body: Body) -> reqwest::Body {
    let left = body.len() as u64;
    reqwest::Body::wrap(Pieces { pieces: body.into_pieces().into(), left })
}

/// What is still to be sent.
struct Pieces {
    pieces: VecDeque<Bytes>,
    left: u64,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let Some(first) = self.pieces.front_mut() else { return Poll::Ready(None) };
        let frame = first.split_to(first.len().min(FRAME_MAX));
        if first.is_empty() {
            self.pieces.pop_front();
        }
        self.left -= frame.len() as u64;
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.pieces.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
