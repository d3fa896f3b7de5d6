//! The demonstration (comes with its provider in the next commit).
/// Runs it.
pub async fn run() -> anyhow::Result<()> {
    anyhow::bail!("not yet")
}
