//! The loop's one epoll: what is waited for, under which token.

use std::{
    collections::HashMap,
    io,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use rustix::event::{
    Timespec,
    epoll::{self, CreateFlags, EventData, EventFlags},
};

use crate::core::InstanceId;

/// What a readiness is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Helper threads have something.
    Waker,
    /// Signals arrived.
    Signals,
    /// A control client connects.
    ControlListener,
    /// A control client speaks or can be written to.
    Control,
    /// A process died.
    Process(InstanceId),
    /// A connection to an instance.
    Link(InstanceId),
    /// A connection to an instance, for orders.
    OrderLink(InstanceId),
    /// The fencer.
    Fencer,
}

/// A registration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(u64);

/// Something is ready.
#[derive(Clone, Copy, Debug)]
pub struct Ready {
    /// Its registration.
    pub token: Token,
    /// What it is about.
    pub source: Source,
    /// It can be read, or is closed, or has an error to tell.
    pub readable: bool,
    /// It can be written.
    pub writable: bool,
}

/// The epoll and its registrations.
pub struct Poll {
    epoll: OwnedFd,
    sources: HashMap<Token, Source>,
    next: u64,
    buffer: Vec<epoll::Event>,
    /// Room to read into, for whoever reads next.
    pub scratch: Vec<u8>,
}

impl Poll {
    /// A new epoll.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn new() -> io::Result<Poll> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        Ok(Poll {
            epoll,
            sources: HashMap::new(),
            next: 0,
            buffer: Vec::with_capacity(256),
            scratch: Vec::new(),
        })
    }

    /// Waits for this from now on; level-triggered.
    ///
    /// # Errors
    /// When the kernel's limit of watches is reached.
    pub fn add(&mut self, fd: impl AsFd, source: Source, writable_too: bool) -> io::Result<Token> {
        self.next += 1;
        let token = Token(self.next);
        epoll::add(&self.epoll, fd, EventData::new_u64(token.0), interest(writable_too))?;
        self.sources.insert(token, source);
        Ok(token)
    }

    /// Whether writability is waited for too.
    ///
    /// # Errors
    /// When the registration is gone.
    pub fn modify(&self, fd: impl AsFd, token: Token, writable_too: bool) -> io::Result<()> {
        Ok(epoll::modify(&self.epoll, fd, EventData::new_u64(token.0), interest(writable_too))?)
    }

    /// Waits for no input any longer, only for writability if that is wanted. That the other end is gone altogether is
    /// told in any case, as readable.
    ///
    /// # Errors
    /// When the registration is gone.
    pub fn ignore_input(&self, fd: impl AsFd, token: Token, writable: bool) -> io::Result<()> {
        let flags = if writable { EventFlags::OUT } else { EventFlags::empty() };
        Ok(epoll::modify(&self.epoll, fd, EventData::new_u64(token.0), flags)?)
    }

    /// Waits for it no longer. The descriptor is closed now, which takes it out of the epoll, for nobody else has it.
    pub fn remove<F: Into<OwnedFd>>(&mut self, fd: F, token: Token) {
        self.sources.remove(&token);
        drop(fd.into());
    }

    /// Waits until something is ready or the time is over; `ready` is filled anew.
    ///
    /// # Errors
    /// None that can be mended: the epoll itself is broken.
    pub fn wait(&mut self, limit: Duration, ready: &mut Vec<Ready>) -> io::Result<()> {
        ready.clear();
        self.buffer.clear();
        let limit = Timespec::try_from(limit).ok();
        match epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut self.buffer), limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        for event in &self.buffer {
            let token = Token(event.data.u64());
            let flags = event.flags;
            let Some(source) = self.sources.get(&token).copied() else { continue };
            let readable =
                flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR | EventFlags::RDHUP);
            ready.push(Ready { token, source, readable, writable: flags.contains(EventFlags::OUT) });
        }
        Ok(())
    }
}

fn interest(writable_too: bool) -> EventFlags {
    let readable = EventFlags::IN | EventFlags::RDHUP;
    if writable_too { readable | EventFlags::OUT } else { readable }
}
