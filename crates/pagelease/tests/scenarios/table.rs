macro_rules! scenarios {
    ($use:ident) => {
        $use! {
            touches::claim_against_touch if |_| true;
            touches::touch_against_touch if |_| true;
        }
    };
}
