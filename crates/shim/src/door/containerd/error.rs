//! Errors as containerd's client reads them: a gRPC code, and a text that ends in the name of its class.

use ttrpc::{Code, get_status};

/// An error of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TaskError {
    code: Code,
    text: String,
}

/// What a call gives.
pub(super) type Result<T> = std::result::Result<T, TaskError>;

impl TaskError {
    fn new(code: Code, text: impl Into<String>, class: &str) -> Self {
        Self { code, text: format!("{}: {class}", text.into()) }
    }

    /// No such thing, or no longer.
    pub(super) fn not_found(text: impl Into<String>) -> Self {
        Self::new(Code::NOT_FOUND, text, "not found")
    }

    /// The id is in use.
    pub(super) fn exists(text: impl Into<String>) -> Self {
        Self::new(Code::ALREADY_EXISTS, text, "already exists")
    }

    /// A value is wrong.
    pub(super) fn invalid(text: impl Into<String>) -> Self {
        Self::new(Code::INVALID_ARGUMENT, text, "invalid argument")
    }

    /// The state does not allow it.
    pub(super) fn precondition(text: impl Into<String>) -> Self {
        Self::new(Code::FAILED_PRECONDITION, text, "failed precondition")
    }

    /// It took too long.
    pub(super) fn deadline(text: impl Into<String>) -> Self {
        Self::new(Code::DEADLINE_EXCEEDED, text, "context deadline exceeded")
    }

    /// Of no class; the text is for people.
    pub(super) fn unknown(text: impl Into<String>) -> Self {
        Self { code: Code::UNKNOWN, text: text.into() }
    }

    /// A failed system call on something with a name.
    pub(super) fn io(what: impl Into<String>, error: std::io::Error) -> Self {
        Self::unknown(format!("{}: {error}", what.into()))
    }

    /// The text with its class.
    pub(super) fn text(&self) -> &str {
        &self.text
    }
}

impl From<TaskError> for ttrpc::Error {
    fn from(error: TaskError) -> Self {
        Self::RpcStatus(get_status(error.code, error.text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_end_in_their_class() {
        let error = TaskError::not_found("container not created");
        assert_eq!(error.text(), "container not created: not found");
        let ttrpc::Error::RpcStatus(status) = ttrpc::Error::from(error) else { panic!("not a status") };
        assert_eq!(status.code(), Code::NOT_FOUND);
    }
}
