//! What the tests stand on: a fresh database each, and the same SQL spoken to both kinds.

mod ground;
pub mod private;
pub mod proxy;
pub mod server;
mod shell;

pub use ground::{Ground, Kind};

/// Makes of each `async fn name(ground: &Ground)` two tests: `sqlite::name` and `postgres::name`.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod sqlite {
            $(
                #[tokio::test]
                async fn $name() {
                    let ground = $crate::support::Ground::sqlite().await;
                    super::$name(&ground).await;
                    ground.close().await;
                }
            )+
        }
        mod postgres {
            $(
                #[tokio::test]
                async fn $name() {
                    let ground = $crate::support::Ground::postgres().await;
                    super::$name(&ground).await;
                    ground.close().await;
                }
            )+
        }
    };
}
pub(crate) use on_both;
