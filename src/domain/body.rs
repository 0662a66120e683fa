//! The body of a request, in pieces: what a row brought is sent from where it stands.

use bytes::{Bytes, BytesMut};

use crate::domain::job::Raw;

/// A larger piece than this is sent from where it stands; smaller ones are gathered.
const SHARED_MIN: usize = 16 * 1024;

/// A body that shares its large pieces with the job that it is made of. Cloning copies no bytes.
#[derive(Debug, Clone, Default)]
pub struct Body {
    pieces: Vec<Bytes>,
    gathered: BytesMut,
}

impl Body {
    /// Adds text.
    pub fn push_str(&mut self, text: &str) {
        self.gathered.extend_from_slice(text.as_bytes());
    }

    /// Adds JSON text, without copying it where it is large.
    pub fn push_raw(&mut self, raw: &Raw) {
        if raw.get().len() < SHARED_MIN {
            return self.push_str(raw.get());
        }
        self.seal();
        self.pieces.push(Bytes::from_owner(raw.clone()));
    }

    /// Returns the size in bytes.
    pub fn len(&self) -> usize {
        self.pieces.iter().map(Bytes::len).sum::<usize>() + self.gathered.len()
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns its pieces, in order.
    pub fn into_pieces(mut self) -> Vec<Bytes> {
        self.seal();
        self.pieces
    }

    /// Returns it as one piece, copied: for looking at it.
    pub fn to_vec(&self) -> Vec<u8> {
        self.clone().into_pieces().concat()
    }

    fn seal(&mut self) {
        if !self.gathered.is_empty() {
            let gathered = self.gathered.split().freeze();
            self.pieces.push(gathered);
        }
    }
}

impl PartialEq for Body {
    /// However it is cut into pieces.
    fn eq(&self, other: &Self) -> bool {
        self.to_vec() == other.to_vec()
    }
}

impl Eq for Body {}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self { pieces: vec![bytes], gathered: BytesMut::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_piece_is_sent_from_where_it_stands() {
        let large = Raw::from(format!("\"{}\"", "x".repeat(SHARED_MIN)));
        let mut body = Body::default();
        assert!(body.is_empty());
        body.push_str("[");
        body.push_raw(&Raw::from("1"));
        body.push_str(",");
        body.push_raw(&large);
        body.push_str("]");
        let whole = format!("[1,{}]", large.get());
        assert_eq!(body.len(), whole.len());
        assert_eq!(body.to_vec(), whole.as_bytes());
        assert_eq!(body, Body::from(Bytes::from(whole)));
        let pieces = body.into_pieces();
        assert_eq!(pieces.len(), 3);
        assert_eq!(pieces[1].as_ptr(), large.get().as_ptr());
    }
}
