//! Where the real services are.

/// The broker to test against, from `BRANCHLINE_TEST_AMQP_URL` or where RabbitMQ usually is.
pub(crate) fn amqp_url() -> String {
    std::env::var("BRANCHLINE_TEST_AMQP_URL")
        .unwrap_or_else(|_| "amqp://guest:guest@127.0.0.1:5672/%2f".to_owned())
}
