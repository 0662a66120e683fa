//! A build without the feature `otel` traces nothing: what is called here is not there in the binary.

use super::super::Mill;
use super::super::attempt::Ended;
use crate::domain::job::{Claimed, Job, Lease};
use crate::domain::ledger::{Answer, Call};
use crate::domain::reply::Exchange;
use crate::domain::talk::Request;

/// Where spans are made: nowhere.
#[derive(Debug, Clone, Default)]
pub struct Traces {}

#[inline]
pub(in crate::worker) const fn claimed(mill: &Mill, _jobs: &[Claimed]) {
    let Traces {} = &mill.traces;
}

#[inline]
pub(in crate::worker) const fn called(
    _mill: &Mill,
    _job: &Job,
    _request: &Request,
    _exchange: &Exchange,
    _call: &Call,
) {
}

#[inline]
pub(in crate::worker) const fn answered(_mill: &Mill, _lease: Lease, _answer: &Answer) {}

#[inline]
pub(in crate::worker) const fn ended(_mill: &Mill, _lease: Lease, _how: Ended) {}
